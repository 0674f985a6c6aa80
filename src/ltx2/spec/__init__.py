"""The words of the house: requests, plans, cards, geometry, events and errors. Nothing here knows torch."""
