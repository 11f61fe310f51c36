"""The worker process: proxy clients, TCP flows, UDP associations, access policy, dialling."""
