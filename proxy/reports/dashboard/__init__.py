"""The dashboard: the books of a period and what the gateway does now, as pages for people who look all day."""
