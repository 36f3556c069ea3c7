-- The tables of schema 1, as rlhf-bench 0.1.0 made them in SQLite. PostgreSQL calls BLOB BYTEA and counts verdicts itself.
CREATE TABLE checkpoints ( digest VARCHAR NOT NULL, path VARCHAR NOT NULL, parent VARCHAR, recipe BLOB NOT NULL, registered FLOAT NOT NULL, PRIMARY KEY (digest) );
CREATE TABLE completions ( "key" VARCHAR(64) NOT NULL, value BLOB NOT NULL, PRIMARY KEY ("key") );
CREATE TABLE meta ( name VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY (name) );
CREATE TABLE rewards ( "key" VARCHAR(64) NOT NULL, value BLOB NOT NULL, PRIMARY KEY ("key") );
CREATE TABLE runs ( id VARCHAR NOT NULL, "key" VARCHAR(64) NOT NULL, model VARCHAR NOT NULL, checkpoint VARCHAR NOT NULL, suite VARCHAR NOT NULL, protocol VARCHAR NOT NULL, judge VARCHAR, settings BLOB NOT NULL, manifest BLOB NOT NULL, status VARCHAR NOT NULL, created VARCHAR NOT NULL, started FLOAT NOT NULL, finished VARCHAR, report BLOB, PRIMARY KEY (id) );
CREATE TABLE samples ( "key" VARCHAR(64) NOT NULL, value BLOB NOT NULL, PRIMARY KEY ("key") );
CREATE TABLE scores ( "key" VARCHAR(64) NOT NULL, value BLOB NOT NULL, PRIMARY KEY ("key") );
CREATE TABLE verdicts ( id INTEGER NOT NULL, value BLOB NOT NULL, created VARCHAR NOT NULL, PRIMARY KEY (id) );
CREATE TABLE aliases ( name VARCHAR NOT NULL, checkpoint VARCHAR NOT NULL, PRIMARY KEY (name), FOREIGN KEY(checkpoint) REFERENCES checkpoints (digest) );
CREATE TABLE champions ( generation INTEGER NOT NULL, checkpoint VARCHAR NOT NULL, verdict INTEGER, reason TEXT NOT NULL, moved_at VARCHAR NOT NULL, PRIMARY KEY (generation), FOREIGN KEY(checkpoint) REFERENCES checkpoints (digest), FOREIGN KEY(verdict) REFERENCES verdicts (id) );
CREATE TABLE records ( run VARCHAR NOT NULL, benchmark VARCHAR NOT NULL, sample_id VARCHAR NOT NULL, position INTEGER NOT NULL, digest VARCHAR(64) NOT NULL, sample VARCHAR(64) NOT NULL, value BLOB NOT NULL, PRIMARY KEY (run, benchmark, sample_id), FOREIGN KEY(run) REFERENCES runs (id), FOREIGN KEY(sample) REFERENCES samples ("key") );
