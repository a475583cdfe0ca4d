"""The roof: the only folder that imports Ray and MLflow; it knows no paper."""
