"""What the fleet is doing: the gateway's own in-flight ledger, fused with what engines tell of themselves."""
