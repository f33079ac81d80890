#!/bin/bash
#
# memory.sh - run the suites on a server that watches over memory: PostgreSQL
# built with assertions and with valgrind's requests.  Run by
# scripts/test --memory [layer...].
#
# 1. assertions: all layers.
# 2. discarded caches: the verbs with debug_discard_caches = 1, which throws away
#    whatever an invalidation that comes at that moment could.  A call takes
#    from seconds to a minute then, so this is a script of its own,
#    test/memory/discard.sql, which must print what it prints without.
# 3. valgrind: reads of memory that is not ours, or has not been written.  A
#    report counts if a function of ours is in its stack.
#
# The server is built once for each release, which takes some minutes, and kept
# outside the checkout.
#
# shellcheck disable=SC2317 # supervise() and a trap call functions

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/postgres_source.sh
. "$repo/scripts/postgres_source.sh"

# A server built with other options than these is built anew.
configure_options=(
	--enable-cassert --enable-debug --enable-depend --enable-tap-tests
	--without-readline --without-zlib
	CPPFLAGS=-DUSE_VALGRIND "CFLAGS=-Og -g"
)

# Under valgrind a second is half a minute: what tests the clock, or kills what
# is at work, is left to the assertions.
valgrind_layers=(regression isolation pgtap)

passed=0
failed=0
skipped=0
totals=()
phase=				# process that runs the suites, while it does

# --- the server -------------------------------------------------------------

# build_server FOLDER - configure, compile and install PostgreSQL, which is to
# be used in that folder; DESTDIR is where it is put until it is complete.  As
# in Debian it is built outside its source, without which PGXS does not build
# an extension outside its source either.
build_server()
{
	local from=$scratch/postgresql build=$scratch/build part

	mkdir "$from" "$build" || return
	tar -xf "$source_archive" -C "$from" --strip-components=1 || return
	cd "$build" || return
	"$from/configure" --quiet --prefix="$1" "${configure_options[@]}" || return
	make -s -j "$(nproc)" || return
	for part in . contrib/amcheck contrib/pg_stat_statements; do
		make -s -C "$part" DESTDIR="$scratch/installed" install || return
	done
	cp "$from/src/tools/valgrind.supp" "$scratch/installed$1"
}

# have_server - set "server" to a folder with such a server.
have_server()
{
	server=$cache/assert-$(server_release)-$(cksum <<<"${configure_options[*]}" | cut -d' ' -f1)
	[ ! -d "$server" ] || return 0
	find_source || die "Debian's archive has no source of PostgreSQL $version"
	say "building PostgreSQL with assertions from ${source_archive##*/}"
	(build_server "$server") >"$scratch/postgresql.out" 2>&1 || {
		tail -n 30 "$scratch/postgresql.out" >&2
		die "PostgreSQL could not be built"
	}
	mkdir -p "$cache"
	rm -rf "$server.part"
	mv -T "$scratch/installed$server" "$server.part"
	mv -T "$server.part" "$server"
	keep_only "$server" assert-
	rm -rf "$scratch/postgresql" "$scratch/build" "$scratch/installed"
}

# add_extensions FOLDER - pgTAP is SQL, and pg_cron's library fits: a server
# with assertions has the same layout.
add_extensions()
{
	local name

	for name in pgtap pg_cron; do
		cp "$("$pg_config" --sharedir)/extension/$name"* \
			"$("$1/bin/pg_config" --sharedir)/extension" ||
			say "$name is not there: its tests are skipped or fail"
	done
	cp "$pkglibdir/pg_cron.so" "$("$1/bin/pg_config" --pkglibdir)" || true
}

# make_wrapped NAME COMMAND... - a copy of the server in $scratch/NAME, whose
# postgres is run by a command: "$program" "$@" in it stand for what was to be
# run.  initdb's own processes are left alone.
make_wrapped()
{
	local folder=$scratch/$1

	shift
	cp -a "$server" "$folder"
	add_extensions "$folder"
	mv "$folder/bin/postgres" "$folder/bin/postgres.real"
	cat >"$folder/bin/postgres" <<-END
		#!/bin/bash
		program=\${0%/*}/postgres.real
		case \${1:-} in
			--* | -[CV]*) exec "\$program" "\$@" ;;
		esac
		exec $*
	END
	chmod 755 "$folder/bin/postgres"
}

# --- the suites -------------------------------------------------------------

# run_suites NAME LAYER... - the layers on the server of that name.
run_suites()
{
	local name=$1 begin=$SECONDS last out=$scratch/$1.out p f s

	shift
	say "$name: $*"
	PG_CONFIG="$scratch/$name/bin/pg_config" "$repo/scripts/test" "$@" >"$out" 2>&1 9>&- &
	phase=$!
	wait "$phase" || true
	phase=
	last=$(tail -n 1 "$out")
	if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
		p=${BASH_REMATCH[1]} f=${BASH_REMATCH[2]} s=${BASH_REMATCH[4]:-0}
	else
		p=0 f=1 s=0
	fi
	[ "$f" -eq 0 ] || tail -n 300 "$out"
	count "$name" "$p" "$f" "$s" $((SECONDS - begin))
}

# count NAME PASSED FAILED SKIPPED SECONDS - add to the totals.
count()
{
	passed=$((passed + $2))
	failed=$((failed + $3))
	skipped=$((skipped + $4))
	totals+=("$(printf '%-12s %4d passed %4d failed %4d skipped %5d s' "$@")")
	echo "   ${totals[-1]}"
}

# end_phase CODE - the suites have traps of their own; they are given time to
# end the servers that they started.  The exit code is for cleanup().
end_phase()
{
	if [ -n "$phase" ]; then
		kill -TERM "$phase" 2>/dev/null || true
		wait "$phase" 2>/dev/null || true
	fi
	return "$1"
}

# our_reports FOLDER - print valgrind's reports in which a function of ours
# stands, and how many they are, to $scratch/reports.
our_reports()
{
	cat "$1"/*.log 2>/dev/null | awk '
		/== REPORT-BEGIN/ { text = ""; ours = 0; inside = 1; next }
		/== REPORT-END/ {
			all++
			if (ours) { n++; printf "%s\n", text }
			inside = 0
		}
		inside { text = text $0 "\n" }
		inside && /cusown-ops\.[^\/]*\/src\/src\/|cusown_ops\.so/ { ours = 1 }
		END { printf "reports: %d, with functions of ours: %d\n", all, n }'
}

# judge_reports FOLDER - a report is a failed test, none is one that passed.
judge_reports()
{
	local n

	our_reports "$1" >"$scratch/reports"
	tail -n 1 "$scratch/reports"
	n=$(sed -n '$s/.*ours: //p' "$scratch/reports")
	[ "$n" -eq 0 ] || head -n 400 "$scratch/reports"
	[ -n "$(ls -A "$1")" ] || { echo "valgrind has not run"; n=1; }
	count reports $((n == 0)) "$n" 0 0
}

# shellcheck disable=SC2016
run_assertions()
{
	make_wrapped assertions '"$program"' '"$@"'
	run_suites assertions "$@"
}

# use_server NAME - from here on lib.sh works with that server.
use_server()
{
	pg_config=$scratch/$1/bin/pg_config
	find_server
	build_and_install "$repo" >"$scratch/build.out" 2>&1 || { cat "$scratch/build.out"; return 1; }
}

# print_with N - what the script prints with debug_discard_caches = N.
print_with()
{
	as_server "$bindir/createdb" "discard_$1"
	as_server "$bindir/psql" -qX -d "discard_$1" -v discard="$1" -v fixture="$src/test/fixture" \
		-f "$src/test/memory/discard.sql" 2>&1 |
		sed -E 's/debug_discard_caches = [01]//; s/discard_[01]/discard/g; s,^psql:[^ ]*: ,,'
}

# compare_discarding - a subshell of its own, for the sake of the other phases.
compare_discarding()
(
	use_server assertions || exit
	start_server discard
	print_with 0 >"$scratch/discard.expected"
	print_with 1 >"$scratch/discard.out"
	stop_server discard
	! grep -aE 'PANIC:|TRAP:|terminated by signal' "$scratch/discard.log" || exit
	[ "$(wc -l <"$scratch/discard.out")" -gt 50 ] || { cat "$scratch/discard.out"; exit 1; }
	diff -u "$scratch/discard.expected" "$scratch/discard.out"
)

run_discarding()
{
	local begin=$SECONDS rc=0

	say "discarding: test/memory/discard.sql"
	supervise "$scratch/discard.diff" compare_discarding || rc=$?
	count discarding $((rc == 0)) $((rc != 0)) 0 $((SECONDS - begin))
}

# Each process writes a file of its own, and all users may.
# shellcheck disable=SC2016
run_valgrind()
{
	local reports=$scratch/reports.d

	mkdir -m 1777 "$reports"
	cp "$repo/test/memory/valgrind.supp" "$scratch"
	make_wrapped valgrind valgrind --quiet --leak-check=no --num-callers=60 \
		--fullpath-after= --suppressions="$server/valgrind.supp" \
		--suppressions="$scratch/valgrind.supp" \
		--error-markers=REPORT-BEGIN,REPORT-END --log-file="$reports/%p.log" \
		'"$program"' '"$@"'
	run_suites valgrind "$@"
	judge_reports "$reports"
}

# --- the run ----------------------------------------------------------------

# chosen LAYER... - print those of the layers that were asked for.
chosen()
{
	local layer

	for layer; do
		[ ${#asked[@]} -gt 0 ] && [[ " ${asked[*]} " != *" $layer "* ]] || echo "$layer"
	done
}

finish()
{
	local line="$passed passed, $failed failed"

	[ "$skipped" -eq 0 ] || line+=", $skipped skipped"
	printf '\n'
	printf '%s\n' "${totals[@]}" "$line"
	[ "$failed" -eq 0 ] || exit 1
	exit 0
}

main()
{
	local asked=("$@") layers

	need_packages "${build_packages[@]}" bzip2 libc6-dbg libipc-run-perl perl \
		valgrind "postgresql-$version-cron" "postgresql-$version-pgtap"
	make_scratch
	chmod 755 "$scratch"
	trap 'set +e; end_phase $?; cleanup' EXIT
	have_server
	mapfile -t layers < <(chosen regression isolation pgtap tap)
	run_assertions "${layers[@]}"
	run_discarding
	mapfile -t layers < <(chosen "${valgrind_layers[@]}")
	[ ${#layers[@]} -eq 0 ] || run_valgrind "${layers[@]}"
	finish
}

main "$@"
