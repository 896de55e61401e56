"""The savings report: built from the ledger, shown as a table, JSON or CSV."""
