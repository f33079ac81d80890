-- a client of bench/backlog: one booking, created and confirmed
\set slot random(1, :slots)
SELECT bench.create_booking(:slot) AS booking \gset
SELECT bench.confirm_booking(:booking);
