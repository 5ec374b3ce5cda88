"""The table of scenarios holds for this language."""

from pathlib import Path

from conftest import SCENARIOS


def test_every_scenario_is_played_here(request):
    table = set().union(*SCENARIOS.values())
    played = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        played |= {line[len("def test_"):line.index("(")] for line in path.read_text().splitlines() if line.startswith("def test_")}
    played.discard("every_scenario_is_played_here")
    assert played == table
