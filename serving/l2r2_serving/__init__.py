"""The gRPC service `l2r2.v1.RecognitionService`, its client and their commands.

    client.Client            recognize photographs on a server
    server.RecognitionServer serve bundles
    bundles.OpenBundle       the same answers in this process
    answer.Answer            what all of them give

Nothing is imported here: `l2r2 --help` must work where gRPC is not installed.
"""
