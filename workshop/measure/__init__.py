"""Honest comparisons: pairs in ABBA order, equal answers, an interval, a verdict. It knows nothing of servers."""
