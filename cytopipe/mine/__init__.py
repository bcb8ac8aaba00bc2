"""Which windows of unannotated slides are worth learning from: scoring them, choosing among them, and the leak
guard."""

from cytopipe.mine.choose import Candidates, Picked, Strategy, choose, parse_mixture
from cytopipe.mine.config import MineConfig, mine_config
from cytopipe.mine.cut import cut_picked
from cytopipe.mine.guard import Guarded, KnownSlide, guard, known_slides
from cytopipe.mine.look import Finder, Windows, find_candidates, load_finder
from cytopipe.mine.score import top_suspicion
from cytopipe.mine.scored import read_candidates, write_candidates

__all__ = [
    "Candidates",
    "Finder",
    "Guarded",
    "KnownSlide",
    "MineConfig",
    "Picked",
    "Strategy",
    "Windows",
    "choose",
    "cut_picked",
    "find_candidates",
    "guard",
    "known_slides",
    "load_finder",
    "mine_config",
    "parse_mixture",
    "read_candidates",
    "top_suspicion",
    "write_candidates",
]
