"""Who may ask and what it has cost them: keys, the tenants' file and the ledger."""
