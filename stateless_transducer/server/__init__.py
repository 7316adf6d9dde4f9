"""Floor 6: the server: HTTP, WebSocket and a page; one model shared by many clients."""
