"""The ground floor: errors, atomic files and journals, seeds, boxes, progress callbacks, where shipped things are."""
