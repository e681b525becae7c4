"""Finding action servers and calling them. What an answer means for a saga is not decided here."""
