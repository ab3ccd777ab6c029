"""The dashboard's panels that are text and tables: HTML out of the views, escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby

from dpilot.monitor.tables import nbytes_text
from dpilot.monitor.views import View

__all__ = ["data_html", "matrix_html", "pilots_html", "summary_html", "transfers_html", "waiting_html"]

#: Up to so many pilots have a row each; of more there is a row for each machine, or datacenter.
_MOST_ROWS = 40
#: Where there is nothing to tell.
_NONE = "\N{EN DASH}"


def summary_html(view: View) -> str:
    """Tiles with the numbers that matter."""
    units, slots, transfers = view["units"], view["slots"], view["transfers"]
    read = view["input_bytes"]
    n_read = sum(read.values())
    local = f"{read['same_machine'] / n_read:.0%}" if n_read else _NONE
    n_failed = units.get("Failed", 0)
    tiles = [
        (f"{units.get('Running', 0):,}", "units running", f"{units.get('Staging', 0):,} staging"),
        (f"{units.get('Pending', 0):,}", "units waiting", ""),
        (f"{units.get('Done', 0):,}", "units done", _ended(n_failed, units.get("Canceled", 0))),
        (f"{slots['busy']:,} / {slots['total']:,}", "slots busy", _pilots(view["pilots"])),
        (f"{view['replicas']:,}", "replicas", f"{nbytes_text(view['stored_bytes'])} on {_n(view['stores'], 'store')}"),
        (local, "of input from the same machine", f"{nbytes_text(n_read - read['same_machine'])} came from elsewhere"),
        (
            f"{nbytes_text(int(view['bytes_per_second']))}/s",
            "moved now",
            f"{_n(transfers['moving'], 'transfer')}, {transfers['waiting']:,} waiting",
        ),
    ]
    cells = (f'<div class="tile"><b>{n}</b><span>{what}</span><small>{more}</small></div>' for n, what, more in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _ended(failed: int, canceled: int) -> str:
    word = f'<span class="bad">{failed:,} failed</span>' if failed else "none failed"
    return f"{word}, {canceled:,} canceled" if canceled else word


def _pilots(states: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {state.lower()}" for state, n in states.items()) or "no pilot"


def pilots_html(view: View) -> str:
    """Pilots with their slots, by datacenter and machine."""
    rows = view["pilots"]
    if not rows:
        return _nothing("There is no pilot yet.")
    live = [row for row in rows if row["state"] in ("Pending", "Running")] or rows
    what = "pilot"
    if len(live) > _MOST_ROWS:
        live, what = _together(live, lambda row: (_site(row), row["machine"] or _NONE)), "machine"
        if len(live) > _MOST_ROWS:
            live, what = [_of_site(row) for row in _together(live, lambda row: (_site(row), ""))], "datacenter"
    live.sort(key=lambda row: (_site(row), row["machine"] or "", row["pilot"]))
    lines = []
    for site, group in groupby(live, _site):
        if what != "datacenter":
            lines.append(f'<tr class="group"><td colspan="6">{escape(site)}</td></tr>')
        for row in group:
            share = row.get("busy", 0) / row["slots"] if row["slots"] else 0.0
            lines.append(
                f'<tr><td class="id"><code>{escape(row["pilot"])}</code></td><td>{escape(row["machine"] or _NONE)}</td>'
                f"<td>{escape(row['state'])}</td>"
                f'<td style="width:34%">{_bar(share, f"{share:.0%} of slots busy")}</td>'
                f'<td class="n">{row.get("busy", 0):,} / {row["slots"]:,}</td>'
                f'<td class="n">{row.get("done", 0):,}</td></tr>'
            )
    head = _head([what, "pilots" if what == "datacenter" else "machine", "state", "slots busy"], ["busy", "done"])
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def _of_site(row: View) -> View:
    """The row of a whole site: it is its own headline."""
    return {**row, "pilot": row["datacenter"], "machine": f"{row['pilots']:,}"}


def _together(rows: list[View], key: Callable[[View], tuple[str, str]]) -> list[View]:
    made = []
    for (site, machine), group in groupby(sorted(rows, key=key), key):
        members = list(group)
        sums: View = {name: sum(row.get(name, 0) for row in members) for name in ("busy", "slots", "done")}
        n = sum(row.get("pilots", 1) for row in members)
        running = sum(row["state"] == "Running" or row.get("running_pilots", 0) for row in members)
        state = "Running" if running else "Pending"
        made.append(
            {**sums, "pilot": f"{n:,} pilots", "pilots": n, "datacenter": site, "machine": machine, "state": state}
        )
    return made


def matrix_html(view: View) -> str:
    """Where the data lay, by where the units ran that read it."""
    cells = {(cell["data"], cell["run"]): cell for cell in view["cells"]}
    if not cells:
        return _nothing("No unit has read a data unit yet.")
    most = max(cell["bytes"] for cell in cells.values()) or 1
    rows = []
    for data in view["data_sites"]:
        row = [f'<th scope="row">{escape(data)}</th>']
        for run in view["run_sites"]:
            cell = cells.get((data, run))
            home = ' class="home"' if data == run else ""
            if cell is None:
                row.append(f'<td{home}><span class="muted">{_NONE}</span></td>')
                continue
            tint = 0.04 + 0.30 * cell["bytes"] / most
            row.append(
                f'<td{home} style="background: rgba(var(--tint), {tint:.2f})"><b>{cell["runs"]:,}</b>'
                f"<small>{nbytes_text(cell['bytes'])}</small></td>"
            )
        rows.append(f"<tr>{''.join(row)}</tr>")
    head = "".join(f'<th scope="col">{escape(run)}</th>' for run in view["run_sites"])
    top = f'<tr><th rowspan="2" scope="col">data at</th><th colspan="{len(view["run_sites"])}">units ran at</th></tr>'
    return f'<div class="scroll"><table class="matrix">{top}<tr>{head}</tr>{"".join(rows)}</table></div>'


def transfers_html(view: View) -> str:
    """Links, and the transfers that move now."""
    if not view["links"]:
        return _nothing("Nothing was moved yet.")
    rows = []
    for link in view["links"][:20]:
        ratio = link.get("actual_to_predicted")
        rows.append(
            [
                f"{escape(link['source'] or _NONE)} → {escape(link['target'] or _NONE)}",
                f"{nbytes_text(int(link['bytes_per_second']))}/s" if link["bytes_per_second"] else _NONE,
                nbytes_text(link["bytes"]),
                f"{link['ended']:,}"
                + (f' <span class="bad">{link["failed"]:,} failed</span>' if link["failed"] else ""),
                _NONE if ratio is None else f"{link['last_predicted_seconds']:.3g} s",
                _NONE if ratio is None else f"{link['last_actual_seconds']:.3g} s",
                _NONE if ratio is None else f'<span class="{_verdict(ratio)}">{ratio:.2g} x</span>',
            ]
        )
    head = _head(["link"], ["now", "moved", "transfers", "predicted", "took", "ratio"])
    text = f'<div class="scroll"><table>{head}{_body(rows)}</table></div>'
    moving = [
        [
            f"<code>{escape(t['du'])}</code> → <code>{escape(t['target'])}</code>",
            _bar(t["moved"] / t["nbytes"] if t["nbytes"] else 0.0, "moved"),
            f"{nbytes_text(t['moved'])} of {nbytes_text(t['nbytes'])}",
        ]
        for t in view["moving"][:8]
    ]
    if moving:
        text += f"<table>{_head(['moving now', '', ''], [])}{_body(moving, numbers=2)}</table>"
    return text


def _verdict(ratio: float) -> str:
    return "good" if 0.5 <= ratio <= 2 else "warn"


def data_html(view: View, stores: View) -> str:
    """Stores, and the newest data units with their replicas."""
    if not stores["stores"]:
        return _nothing("There is no store yet.")
    rows = [
        [
            f"<code>{escape(s['store'])}</code>",
            escape("/".join(filter(None, (s["datacenter"], s["machine"]))) or _NONE),
            escape(s["url"].partition("://")[0]),
            f"{s['data_units']:,}",
            nbytes_text(s["used_bytes"]) + (f" of {nbytes_text(s['size_bytes'])}" if s["size_bytes"] else ""),
        ]
        for s in stores["stores"][:20]
    ]
    text = f"<table>{_head(['store', 'at', 'kind'], ['data units', 'used'])}{_body(rows, numbers=3)}</table>"
    sites = {s["store"]: s["datacenter"] or s["machine"] or s["store"] for s in stores["stores"]}
    rows = [
        [
            f"<code>{escape(d['data_unit'])}</code> {escape(d['name'] or '')}",
            "ready" if d["ready"] else escape(d["state"].lower()),
            escape(", ".join(sites.get(pd, pd) for pd in d["replicas"]))
            + ("".join(f' <span class="warn">+{escape(sites.get(pd, pd))}</span>' for pd in d["coming"])),
            f"{d['files']:,}",
            nbytes_text(d["bytes"]),
        ]
        for d in view["newest"][:30]
    ]
    head = _head(["newest data units", "state", "replicas at"], ["files", "bytes"])
    return f'<div class="scroll">{text}<table style="margin-top: .8rem">{head}{_body(rows, numbers=3)}</table></div>'


def waiting_html(view: View) -> str:
    """Why units wait."""
    if not view["n"]:
        return _nothing("No unit waits.")
    rows = [
        [f"{g['units']:,}", escape(g["kind"]), escape(g["reason"]), f"<code>{escape(g['example'])}</code>"]
        for g in view["groups"][:12]
    ]
    text = f"<table>{_head(['units', 'kind', 'waits', 'for example'], [])}{_body(rows, numbers=9)}</table>"
    if view["looked_at"] < view["n"]:
        text += f'<div class="muted">{view["n"]:,} wait; the first {view["looked_at"]:,} were looked at.</div>'
    return f'<div class="scroll">{text}</div>'


def _site(row: View) -> str:
    return str(row["datacenter"] or "no datacenter")


def _n(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bar(share: float, label: str) -> str:
    width = max(0.0, min(1.0, share))
    return f'<span class="bar" role="img" aria-label="{label}"><i style="width:{width:.1%}"></i></span>'


def _head(names: Sequence[str], numbers: Sequence[str]) -> str:
    cells = [f'<th scope="col">{name}</th>' for name in names]
    cells += [f'<th scope="col" class="n">{name}</th>' for name in numbers]
    return f"<tr>{''.join(cells)}</tr>"


def _body(rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """Rows; cells from the one numbered `numbers` on are numbers."""
    lines = []
    for row in rows:
        cells = [f'<td class="{"n" if i >= numbers else "id" if i == 0 else ""}">{c}</td>' for i, c in enumerate(row)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(lines)


def _nothing(text: str) -> str:
    return f'<div class="nothing">{text}</div>'
