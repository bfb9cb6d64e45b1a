"""A pytest plugin that replaces a Redis server: fakeredis' tests ask one for its version, and end if none runs."""

import redis

redis.Redis.info = lambda self: {"redis_version": "7.4.0"}
