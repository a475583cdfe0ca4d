"""AutoCLINT: any-time classification of unknown images and videos, see ``player.py``."""
