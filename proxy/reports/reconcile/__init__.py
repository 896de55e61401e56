"""Our metering against the provider's bill: readers of bills, what they are compared with, and why they differ.

    files.read(paths) -> Bill       bill.py says what a bill is; openai.py, tables.py read the formats
    ours.read(...)    -> what we metered, per UTC day and model
    compare.compare() -> Reconciliation: cells, each with its causes, which add up to its difference
"""
