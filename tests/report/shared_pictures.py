"""What is read off pictures."""

from matplotlib.figure import Figure


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text")))
