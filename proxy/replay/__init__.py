"""What a fleet and a policy would have done with recorded traffic, and the most that any policy could have saved."""
