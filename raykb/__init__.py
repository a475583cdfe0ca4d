"""raykb: distributed experiment orchestration on Ray for vision research."""
