-- Metrics: what is the matter, of all attached applications, as views and as
-- OpenMetrics; what doc/ has for psql; what psql shows of our functions.
SET client_min_messages = warning;
\getenv abs_srcdir PG_ABS_SRCDIR
\set fixture :abs_srcdir '/test/fixture'
\pset format unaligned
\pset footer off

-- ---------- metrics ----------

-- of nothing attached, only what is installed
CREATE EXTENSION cusown_ops;
SELECT cusown_metrics();
