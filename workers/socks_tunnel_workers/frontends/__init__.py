"""What takes clients in on a gateway: SOCKS, static forwards; each ends in a flow."""
