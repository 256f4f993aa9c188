"""The Lightly API over HTTP: transports, retries, error mapping, models and the typed client."""
