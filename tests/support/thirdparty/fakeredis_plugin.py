"""A pytest plugin: fakeredis' tests ask a real Redis server for its version, and end if none runs. Answers for one."""

import redis

redis.Redis.info = lambda self: {"redis_version": "7.4.0"}
