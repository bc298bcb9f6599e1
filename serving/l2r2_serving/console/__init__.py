"""A web page over the gRPC service: a photograph in, the answer and its reasons out.

It is a client like any other, and needs no more of the service than the .proto has. Nothing of it is loaded unless
`l2r2 console` runs.
"""
