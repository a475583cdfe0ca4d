import pkgutil
import subprocess
import sys

from raykb import report


def test_pictures_need_no_pyplot():
    names = [f"raykb.report.{module.name}" for module in pkgutil.iter_modules(report.__path__)]
    assert "raykb.report.comparison" in names
    code = f"import sys, {', '.join(names)}; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
