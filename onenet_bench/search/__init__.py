"""Search: a core that asks and tells over the ledger, and the engines that run what it asks for."""
