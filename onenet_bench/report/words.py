"""What every page is made with: templates, styles, scripts and data that cannot break out of their element."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("onenet_bench.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render(template: str, *, command: str, scripts: tuple[str, ...] = (), data: Any = None, **values: Any) -> str:
    """The page of ``template`` with ``values``; ``command`` is the one that makes it again.

    With ``scripts``, files of the templates' folder, come plotly and ``data``, JSON-ready. Raises LookupError where the
    template asks for what there is not.
    """
    if scripts:
        values |= {
            "data": data,
            "plotly_js": Markup(get_plotlyjs().replace("</script", "<\\/script")),
            "js": Markup("".join(map(_source, scripts))),
            "embedded": Markup(_embedded(data)),
        }
    try:
        return _TEMPLATES.get_template(template).render(
            **values,
            command=command,
            command_comment=Markup(command.replace(">", "&gt;")),  # cannot end the comment it stands in
            css=Markup(_source("page.css")),
        )
    except jinja2.UndefinedError as error:
        raise LookupError(str(error)) from error


def figure_json(figure: Any) -> dict[str, Any]:
    """A plotly figure as JSON-ready values, without plotly's own template."""
    made: dict[str, Any] = json.loads(figure.to_json())
    return {"data": made["data"], "layout": made["layout"]}


def _source(name: str) -> str:
    return (files("onenet_bench.report") / "templates" / name).read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    """``value`` as JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
