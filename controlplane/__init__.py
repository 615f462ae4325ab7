"""The service that turns a request into training runs on a cluster. It never imports torch."""
