# shellcheck shell=bash disable=SC2154 # set by scripts/lib.sh
#
# lib.sh - what the benches share: a server, databases, figures.
#
# To be sourced after scripts/lib.sh.  The application's schema and data come
# from expiry_data.sql.

# start_bench_server [LINE...] - build, install, and start a private server
# with these lines of postgresql.conf beside those that every bench has.
start_bench_server()
{
	need_packages "${build_packages[@]}"
	make_scratch
	build_and_install "$repo" || die "it does not build"
	start_server bench "shared_buffers = 1GB" "max_wal_size = 8GB" "$@"
}

# sql DATABASE [ARGUMENT...] - psql, quiet, ending at an error.
sql()
{
	as_server "$bindir/psql" -qAtX -v ON_ERROR_STOP=1 -d "$@"
}

# make_template NAME BOOKINGS DUE - a database with so many bookings, of which
# so many are due, attached.
make_template()
{
	say "making $2 bookings, $3 of them due"
	as_server "$bindir/createdb" "$1"
	sql "$1" -f "$src/test/fixture/cusown_app.sql"
	sql "$1" -v bookings="$2" -v due="$3" -f "$src/bench/expiry_data.sql"
}

# with_copy TEMPLATE COMMAND... - run a command on bench_run, a fresh copy of a
# database, and drop that.
with_copy()
{
	as_server "$bindir/createdb" --template="$1" bench_run
	sql bench_run -c CHECKPOINT
	shift
	"$@"
	as_server "$bindir/dropdb" bench_run
}

# seconds COMMAND... - run it and print how long it took.
seconds()
{
	local start end

	start=$(date +%s.%N)
	"$@" >"$scratch/candidate.out" 2>&1 || { cat "$scratch/candidate.out" >&2; return 1; }
	end=$(date +%s.%N)
	awk -v a="$start" -v b="$end" 'BEGIN { printf "%.2f", b - a }'
}

# percentile P - of the numbers on standard input, one a line.
percentile()
{
	sort -n | awk -v p="$1" '{ v[NR] = $1 }
		END { if (NR) { n = int(NR * p / 100); print v[n < 1 ? 1 : n] } }'
}

# median NUMBER... - the middle one.
median()
{
	printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"
}

# --- a drain, and what it takes from others ----------------------------------

# start_drain DATABASE [BATCH] - run the job expire_bookings in the background.
# Sets drain_pid, the script's child, and drain_backend, the server's process.
start_drain()
{
	rm -f "$scratch/drain.backend"
	sql "$1" -c "\\o $scratch/drain.backend" -c 'SELECT pg_backend_pid()' -c '\o' \
		-c "CALL cusown_run_job('expire_bookings', batch_size => ${2:-500})" \
		>"$scratch/drain.out" 2>&1 &
	drain_pid=$!
	until [ -s "$scratch/drain.backend" ]; do
		kill -0 "$drain_pid" 2>/dev/null || { cat "$scratch/drain.out" >&2; die "no drain"; }
	done
	drain_backend=$(<"$scratch/drain.backend")
}

# watch_memory - print, in kB, the most memory of its own that the draining
# backend has had, looked at four times a second.  Pages of shared buffers that
# it touched are not its own.
watch_memory()
{
	local most=0 now

	while kill -0 "$drain_pid" 2>/dev/null; do
		now=$(awk '/^RssAnon/ { print $2 }' "/proc/$drain_backend/status" 2>/dev/null) || true
		[ "${now:-0}" -le "$most" ] || most=$now
		sleep 0.25
	done
	echo "$most"
}

# batch_times DATABASE - print, in ms, how long each batch's transaction took.
# A change carries the start of its transaction, and batches follow without a
# pause, so this is from one start to the next, commit included: longer than
# any slot was locked in it.
batch_times()
{
	sql "$1" -c "SELECT round(extract(epoch FROM lead(at) OVER (ORDER BY at) - at) * 1000, 1)
		FROM (SELECT DISTINCT at FROM cusown_ops.change) c" | sed '/^$/d'
}

# drain_rate DATABASE - bookings that the last run expired in a second.
drain_rate()
{
	sql "$1" -c "SELECT round(changed / extract(epoch FROM finished_at - started_at))
		FROM cusown_ops.job_run WHERE status = 'succeeded' ORDER BY id DESC LIMIT 1"
}

# compare NAME VALUE LIMIT - print a figure beside what it should not exceed.
compare()
{
	awk -v name="$1" -v value="$2" -v limit="$3" 'BEGIN {
		printf "%s: %s, at most %s: %s\n", name, value, limit,
			value + 0 <= limit + 0 ? "yes" : "NO" }'
}
