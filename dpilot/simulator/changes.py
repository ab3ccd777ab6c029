"""Changes to a scenario in a few words, as the command line takes them."""

from __future__ import annotations

import fnmatch
import shlex
from itertools import count
from typing import Any

from dpilot.descriptions import did_you_mean
from dpilot.errors import DescriptionError
from dpilot.simulator.reading import fields_of, read_one
from dpilot.simulator.scenario import Link, Pilot, Scenario
from dpilot.simulator.simulation import change

__all__ = ["FORMS", "changed"]

#: What may be written: "pilot us-east slots=8", "without PILOT", "replica DU STORE", "link eu us bandwidth=...".
FORMS = {
    "pilot": "pilot DATACENTER[/MACHINE] slots=N [id=... workers=N arrives_s=S walltime_s=S delay_s=S speed=X]",
    "without": "without PILOT",
    "replica": "replica DATA STORE",
    "link": "link SITE SITE bandwidth=B [latency_s=S from_s=S]",
}


def changed(scenario: Scenario, text: str) -> Scenario:
    """The scenario with one change.

    Parameters
    ----------
    scenario : Scenario
    text : str
        In one of :data:`FORMS`. DATA may be a glob.

    Raises
    ------
    DescriptionError
        If it is in none of them, or names what is not there.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _unclear(text, str(error)) from error
    verb = words[0] if words else ""
    if verb not in FORMS:
        raise _unclear(text, did_you_mean(verb, FORMS))
    plain = [word for word in words[1:] if "=" not in word]
    given: dict[str, Any] = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if len(plain) != {"pilot": 1, "without": 1, "replica": 2, "link": 2}[verb] or (
        given and verb in ("without", "replica")
    ):
        raise _unclear(text, f"write {FORMS[verb]}")
    if verb == "without":
        return change(scenario, without=plain)
    if verb == "replica":
        data = fnmatch.filter([data.id for data in scenario.data], plain[0]) or plain[:1]
        return change(scenario, add_replicas=[(du, plain[1]) for du in data])
    fields = {name: _number(value) for name, value in given.items()}
    if verb == "pilot":
        taken = {pilot.id for pilot in scenario.pilots}
        names = (f"{plain[0]}-{number}" for number in count(1))
        fields.setdefault("id", next(name for name in names if name not in taken))
        fields["datacenter"], _, machine = plain[0].partition("/")
        pilot = read_one(Pilot, fields_of("pilot", {**fields, "machine": machine or None}, repr(text)))
        return change(scenario, add_pilots=[pilot])
    return change(scenario, links=[read_one(Link, fields_of("link", {**fields, "between": plain}, repr(text)))])


def _number(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _unclear(text: str, why: str) -> DescriptionError:
    forms = "\n".join(f"  {form}" for form in FORMS.values())
    return DescriptionError(
        f"{text!r} is no change of a scenario: {why}\nWhat may be written:\n{forms}", field="what_if", value=text
    )
