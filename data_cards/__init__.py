"""What each data set is, where it comes from and what it may not be used for.

``<name>.md`` is a Jinja2 template that a build fills with its own numbers; ``schema.json`` lists
what every card must say.
"""

from importlib.resources import files


def read_text(name: str) -> str:
    """Return one of this folder's files.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    return (files(__name__) / name).read_text(encoding="utf-8")
