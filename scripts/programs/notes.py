"""Notes kept in PostgreSQL and counted in Redis: an app with two services behind it."""
import os

import psycopg
import redis
from fastapi import FastAPI

app = FastAPI()
counter = redis.Redis.from_url(os.environ["REDIS_URL"])


def database():
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


@app.on_event("startup")
def prepare():
    with database() as connection:
        connection.execute("create table if not exists notes (id serial primary key, text text not null)")


@app.post("/notes")
def add(text: str):
    with database() as connection:
        row = connection.execute("insert into notes (text) values (%s) returning id", (text,)).fetchone()
    return {"id": row[0], "text": text}


@app.get("/")
def index():
    with database() as connection:
        notes = connection.execute("select text from notes order by id").fetchall()
    return {"visits": counter.incr("visits"), "notes": [text for (text,) in notes]}
