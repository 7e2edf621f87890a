"""Requests to Spotify: what is sent, what the answers mean, when to send, and over which connections."""
