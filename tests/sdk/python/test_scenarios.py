"""The table of scenarios holds for both languages."""

import json
from pathlib import Path


def test_every_scenario_is_played_here(request):
    table = json.loads((Path(__file__).parents[1] / "scenarios.json").read_text())
    played = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        played |= {line[len("def test_"):line.index("(")] for line in path.read_text().splitlines() if line.startswith("def test_")}
    played.discard("every_scenario_is_played_here")
    assert played == set(table)
