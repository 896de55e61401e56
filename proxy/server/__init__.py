"""Who calls us: the guard, the data routes and their one straight line, and the small app behind them."""
