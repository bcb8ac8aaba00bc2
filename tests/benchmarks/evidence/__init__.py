"""Evidence on real images: the same data, networks and steps for every method (METHODS 2), and the tables of
docs/EVIDENCE.md.

    python -m tests.benchmarks.evidence.make_splits --data ../shared/data    the committed parts (splits/), once
    python -m tests.benchmarks.evidence.run --task semantic --methods cdcl --labels 1/32 --seeds 0 1 2
    python -m tests.benchmarks.evidence.table                                runs/*.json -> docs/EVIDENCE.md
"""
