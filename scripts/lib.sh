# shellcheck shell=bash
#
# lib.sh - what scripts/test and scripts/demo share.
#
# To be sourced by a bash script that runs under `set -euo pipefail`.  The
# usual order:
#
#     need_packages "${build_packages[@]}"
#     make_scratch
#     build_and_install "$repo"
#     start_server demo "shared_preload_libraries = ''"
#     as_server "$bindir/psql" -c 'SELECT 1'
#
# Everything that is started runs in a scratch folder of its own.  On exit,
# Ctrl-C or SIGTERM every process started there is ended and the folder is
# removed.  As root the servers run as user postgres, otherwise as the caller.
#
# Sets: repo, scratch, src (the copied tree), pg_config, bindir, pkglibdir,
# version, cache, clang (empty if the server's is missing).  Reads: PG_CONFIG (another
# server than Debian's PostgreSQL 15).  File descriptor 9 holds the install
# lock and is closed in all children.

# shellcheck disable=SC2034
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pg_config=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
version=$("$pg_config" --version 2>/dev/null | sed -E 's/^[^0-9]*([0-9]+).*/\1/') || true
version=${version:-15}

scratch=			# the private folder, once make_scratch has run
src=				# the copy of the tree that is built and tested
supervised=			# process group that is being waited for
guard_file=			# present while packages are being installed
guard_dir=			# folder made for guard_file, if it was not there
keep_scratch=		# set to 1: leave the folder behind
keep_running=		# set to 1: leave folder and processes behind

# where things are kept that take long to get or to make
if [ "$EUID" -eq 0 ]; then
	cache=/var/cache/cusown_ops
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/cusown_ops
fi

# What is needed to build and to run a private server.
# shellcheck disable=SC2034
build_packages=(
	gcc libc6-dev make
	"postgresql-$version" "postgresql-server-dev-$version"
	libkrb5-dev libssl-dev		# headers behind libpq/auth.h
)

# A caller's connection settings and make options must not reach what runs
# here: no existing cluster may be touched.
for name in "${!PG@}"; do
	[[ $name == PG_* ]] || unset "$name"
done
unset name MAKEFLAGS MFLAGS MAKELEVEL VPATH DESTDIR

# Standard input is never read; a password prompt of sudo opens the terminal.
exec </dev/null


# --- messages ---------------------------------------------------------------

# say TEXT... - print a line about what is going on.
say()
{
	printf '== %s\n' "$*"
}

# die TEXT... - print an error and end the script.
die()
{
	printf '%s: error: %s\n' "${0##*/}" "$*" >&2
	exit 1
}


# --- who runs what ----------------------------------------------------------

# as_root COMMAND... - run a command as root, through sudo when needed.
as_root()
{
	if [ "$EUID" -eq 0 ]; then
		"$@" 9>&-
	elif command -v sudo >/dev/null; then
		sudo -- "$@" 9>&-
	else
		die "this needs root or sudo: $*"
	fi
}

# as_server COMMAND... - run a program (no shell function) in the scratch
# folder as the user that runs the servers.  CUSOWN_SCRATCH marks the process
# and all its descendants as ours.
as_server()
{
	local run=(
		env -u LC_ALL -C "$scratch" CUSOWN_SCRATCH="$scratch"
		HOME="$scratch" TMPDIR="$scratch/tmp" LANG=C.UTF-8
		CUSOWN_FIXTURE="$src/test/fixture" PG_CONFIG="$pg_config" "$@"
	)

	if [ "$EUID" -eq 0 ]; then
		runuser -u postgres -- "${run[@]}" 9>&-
	else
		"${run[@]}" 9>&-
	fi
}

# supervise FILE COMMAND... - run a command or function, its output copied to
# FILE, and return its exit code.  The command gets a process group of its own
# and is waited for in the background, so that a signal ends the script now
# and not when the command is done.
supervise()
{
	local file=$1 rc=0

	shift
	set -m
	{ "$@" 2>&1 | tee "$file"; } 9>&- &
	supervised=$!
	set +m
	wait "$supervised" || rc=$?
	supervised=
	return "$rc"
}


# --- packages ---------------------------------------------------------------

# missing_packages NAME... - print those Debian packages that are not installed.
missing_packages()
{
	local name

	for name; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] ||
			printf '%s\n' "$name"
	done
}

# A server package makes and starts a cluster "main" when it is installed.
# Nobody asked for one, so that is turned off for the time of the installation.
guard_on()
{
	local dir=/etc/postgresql-common/createcluster.d

	[ -d "$dir" ] || guard_dir=$dir
	guard_file=$dir/zz-cusown-ops.conf
	as_root mkdir -p "$dir"
	as_root sh -c "echo 'create_main_cluster = false' >'$guard_file'"
}

guard_off()
{
	if [ -n "$guard_file" ]; then
		as_root rm -f "$guard_file"
	fi
	if [ -n "$guard_dir" ]; then
		as_root rmdir --ignore-fail-on-non-empty "$guard_dir"
	fi
	guard_file=
	guard_dir=
}

# run_apt COMMAND... - apt-get, quiet unless it fails.  It runs in the foreground:
# an installation is not to be cut off half way.
run_apt()
{
	local out

	out=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq \
		-o DPkg::Lock::Timeout=300 "$@" 2>&1) || {
		printf '%s\n' "$out" >&2
		return 1
	}
}

# need_packages NAME... - install the Debian packages that are missing.
# With PG_CONFIG set the server is the caller's own: none of its packages then.
need_packages()
{
	local wanted=() missing name

	for name; do
		[[ -n ${PG_CONFIG:-} && $name == postgresql-* ]] || wanted+=("$name")
	done
	command -v dpkg-query >/dev/null ||
		die "this is not Debian; install by hand what stands for: ${wanted[*]}"
	mapfile -t missing < <(missing_packages "${wanted[@]}")
	[ "${#missing[@]}" -gt 0 ] || return 0

	say "installing Debian packages: ${missing[*]}"
	run_apt update || say "apt-get update failed; trying with the lists that are here"
	[[ " ${missing[*]} " != *" postgresql-$version "* ]] || guard_on
	run_apt install -y --no-install-recommends "${missing[@]}" ||
		die "could not install: ${missing[*]}"
	guard_off
}

# need_program NAME PACKAGE - have a program of a Debian package that is not to be
# installed whole in $cache/tools.  Returns 1 where it cannot be had.
need_program()
{
	local part rc=0

	[ ! -x "$cache/tools/$1" ] || return 0
	mkdir -p "$cache/tools" || return
	part=$(mktemp -d "$cache/part.XXXXXXXX") || return
	say "fetching $1 of Debian's package $2"
	{ download "$part" "$2" || { run_apt update && download "$part" "$2"; }; } &&
		dpkg-deb --extract "$part"/*.deb "$part/package" &&
		mv "$part/package/usr/bin/$1" "$cache/tools/$1" || rc=1
	rm -rf "$part"
	return "$rc"
}

download()
{
	(cd "$1" && apt-get -qq -o APT::Sandbox::User= download "$2") >/dev/null 2>&1
}


# --- scratch folder and end of the script -----------------------------------

# find_server - set what depends on pg_config.  Where the clang that the server
# was built with is missing, nothing can be built for its JIT.
find_server()
{
	[ -x "$pg_config" ] || die "no pg_config at $pg_config (set PG_CONFIG)"
	bindir=$("$pg_config" --bindir)
	pkglibdir=$("$pg_config" --pkglibdir)
	make_options=(-s "PG_CONFIG=$pg_config")
	clang=$(sed -n 's/^CLANG *= *//p' "$pkglibdir/pgxs/src/Makefile.global")
	if [ ! -x "$clang" ]; then
		clang=
		make_options+=(with_llvm=no)
	fi
}

# make_scratch - make the private folder and have it removed at the end.
make_scratch()
{
	find_server
	scratch=$(mktemp -d "${TMPDIR:-/tmp}/cusown-ops.XXXXXXXX")
	src=$scratch/src
	mkdir -m 700 "$scratch/tmp" "$scratch/socket" "$src"
	give_to_server "$scratch"
	as_server true ||
		die "the user that runs the servers cannot enter $scratch (see TMPDIR)"
}

# give_to_server PATH - make the server's user the owner, if we are root.
give_to_server()
{
	if [ "$EUID" -eq 0 ]; then
		chown -R postgres: "$1"
	fi
}

# gentle_signal PID - the signal that ends it: QUIT for the main process of a
# server, which is the one that its postmaster.pid names, else TERM.
gentle_signal()
{
	local first=

	{ read -r first <"/proc/$1/cwd/postmaster.pid"; } 2>/dev/null || true
	if [ "$first" = "$1" ]; then
		echo QUIT
	else
		echo TERM
	fi
}

# server_pids - print the pids of all server processes that work in the scratch
# folder.  They are known by their program and its folder, since a server
# process overwrites its environment with its title.
server_pids()
{
	local link

	while IFS= read -r link; do
		[[ $(readlink "${link%cwd}exe") != "$bindir/postgres"* ]] || cut -d/ -f3 <<<"$link"
	done < <(find /proc/[0-9]*/cwd -maxdepth 0 -lname "$scratch/*" 2>/dev/null)
}

# our_pids - print the pids of all processes started through as_server.
our_pids()
{
	{
		grep -slzxF "CUSOWN_SCRATCH=$scratch" /proc/[0-9]*/environ | cut -d/ -f3
		server_pids
	} | sort -un
}

# end_initdb - initdb goes first and at once: on SIGTERM it would remove the
# folder of the server process that it runs.  That one is not to be killed
# either, or it leaves shared memory behind; it ends with its input.
end_initdb()
{
	local pid killed='' try

	for pid in $(our_pids); do
		if [[ $(readlink "/proc/$pid/exe") == "$bindir/initdb" ]]; then
			kill -KILL "$pid" && killed=1
		fi
	done 2>/dev/null
	for try in {1..20}; do
		[ -n "$killed" ] && [ -n "$(server_pids)" ] || return 0
		sleep 0.1
	done
}

# end_processes - end all that as_server started: servers by an immediate
# shutdown, the rest by SIGTERM, and by SIGKILL what is there after 5 seconds.
# A process that is just starting a program cannot be seen: all is over when
# there was nothing twice in a row.
end_processes()
{
	local none=0 pid pids try
	local -A told=()

	end_initdb
	[ -z "$supervised" ] || kill -TERM -- "-$supervised" 2>/dev/null || true
	for try in {1..100}; do
		mapfile -t pids < <(our_pids)
		none=$((${#pids[@]} > 0 ? 0 : none + 1))
		[ "$none" -lt 2 ] || return 0
		for pid in "${pids[@]}"; do
			if [ "$try" -gt 50 ]; then
				kill -KILL "$pid"
			elif [ -z "${told[$pid]:-}" ]; then
				told[$pid]=1
				kill "-$(gentle_signal "$pid")" "$pid"
			fi
		done 2>/dev/null || true
		sleep 0.1
	done
	printf 'could not end processes: %s\n' "${pids[*]}" >&2
}

# cleanup - the EXIT trap: leave nothing behind, keep the exit code.
cleanup()
{
	local rc=$?

	trap '' HUP INT TERM
	trap - EXIT
	set +e
	guard_off
	if [ -n "$scratch" ] && [ -z "$keep_running" ]; then
		end_processes
		# runuser would stay for two seconds more
		[ -z "$supervised" ] || kill -KILL -- "-$supervised" 2>/dev/null
		wait
		if [ -n "$keep_scratch" ]; then
			say "kept: $scratch"
		else
			rm -rf "$scratch"
		fi
	fi
	exit "$rc"
}

trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM


# --- building ---------------------------------------------------------------

# tree_files - print, each ended by NUL, the files of the current folder that
# belong to the project: tracked ones and new ones, but nothing ignored.
tree_files()
{
	local file

	if [ -e .git ] && command -v git >/dev/null; then
		# the checkout may belong to somebody else
		git -c safe.directory='*' ls-files -z --cached --others --exclude-standard
	else
		find . -path ./.git -prune -o -type f -print0
	fi | while IFS= read -r -d '' file; do
		# a tracked file may have been removed
		[ ! -e "$file" ] || printf '%s\0' "$file"
	done
}

# copy_tree FROM TO - copy the project's files; the server's user owns the copy.
copy_tree()
{
	mkdir -p "$2" || return
	(cd "$1" && tree_files | tar --null --no-recursion -T - -cf -) |
		tar --no-same-owner -xf - -C "$2" || return
	give_to_server "$2"
}

# run_make FOLDER ARGUMENT... - make in that folder as the server's user.
run_make()
{
	local folder=$1

	shift
	as_server make -j "$(nproc)" -C "$folder" "${make_options[@]}" "$@"
}

# make_value NAME - print the value of a variable of the Makefile.
make_value()
{
	as_server make --no-print-directory -C "$src" "${make_options[@]}" "print-$1"
}

# lock_install - from now to the end of this script no other one installs: the
# lock is on the server's library folder, so that no file is left behind.
lock_install()
{
	exec 9<"$pkglibdir"
	flock -n 9 && return
	say "waiting for another run to end"
	until flock -n 9; do
		sleep 1
	done
}

# build_and_install FOLDER [MAKE-ARGUMENT...] - copy the project to $src, build
# it there and install it into the server.
build_and_install()
{
	local from=$1

	shift
	lock_install
	copy_tree "$from" "$src" || return
	supervise "$scratch/build.out" run_make "$src" all "$@" || return
	as_root make -C "$src" "${make_options[@]}" "$@" install
}


# --- a private server -------------------------------------------------------

# start_server NAME [LINE...] - start a server in $scratch/NAME, made on first
# use with the given lines of postgresql.conf; its log is $scratch/NAME.log.
# It listens on a socket in the scratch folder only.  PGHOST, PGPORT, PGUSER
# and PGDATABASE are exported; one server runs at a time.
start_server()
{
	local name=$1 data=$scratch/$1

	shift
	[ -d "$data" ] || make_server "$data" "$@"
	as_server "$bindir/pg_ctl" -D "$data" -l "$data.log" -w -t 60 start >"$data.ctl" 2>&1 || {
		cat "$data.ctl" >&2
		tail -n 30 "$data.log" >&2 || true
		die "could not start the server $name"
	}
	export PGHOST=$scratch/socket PGPORT=54320 PGUSER=postgres PGDATABASE=postgres
}

# make_server FOLDER [LINE...] - initdb.  Nothing needs to survive a power cut.
make_server()
{
	local data=$1

	shift
	as_server "$bindir/initdb" -D "$data" --username=postgres --auth=trust \
		--encoding=UTF8 --locale=C.UTF-8 --no-sync >"$data.initdb" 2>&1 || {
		cat "$data.initdb" >&2
		die "could not make a server in $data"
	}
	printf '%s\n' "listen_addresses = ''" \
		"unix_socket_directories = '$scratch/socket'" 'port = 54320' \
		'fsync = off' "timezone = 'UTC'" "log_timezone = 'UTC'" \
		"log_line_prefix = '%m [%p] %q%a '" "$@" >>"$data/postgresql.conf"
}

# stop_server NAME [MODE] - stop it (fast unless told smart or immediate).
stop_server()
{
	as_server "$bindir/pg_ctl" -D "$scratch/$1" -m "${2:-fast}" -w stop >/dev/null
}
