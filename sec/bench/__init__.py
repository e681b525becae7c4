"""Measures clusters: how many sagas they run, and what each action costs."""
