"""A month whose true figures are known: drawn from a seed, booked through the ledger, and read back in every form."""
