# shellcheck shell=bash disable=SC2154 # set by scripts/lib.sh
#
# postgres_source.sh - PostgreSQL's source as Debian's archive has it, kept in
# a folder outside the checkout.  To be sourced behind lib.sh.

# Sets: source_archive.
# shellcheck disable=SC2034
source_archive=		# the .orig.tar of PostgreSQL, once find_source has run

# server_release - print which release pg_config is of, as Debian names it.
server_release()
{
	"$pg_config" --version | sed -E 's/^PostgreSQL ([0-9.]+[^ ]*)( \(Debian ([^)]*)\))?.*/\3 \1/; s/^ //; s/ .*//'
}

# find_source - have the source of the server's release, or else of the newest
# minor release before it that the archive still has: the tests of memory and
# of style do not need the very same.  Returns 1 where none can be had.
find_source()
{
	local folder

	folder=$cache/source-$(server_release)
	if ! [ -d "$folder" ]; then
		fetch_source "$folder" || return
		keep_only "$folder" source-
	fi
	for source_archive in "$folder"/*.orig.tar.*[2z]; do
		[ ! -f "$source_archive" ] || return 0
	done
	return 1
}

# fetch_source FOLDER - download into that folder, which is there whole or not
# at all.
fetch_source()
{
	local part release

	mkdir -p "$cache" || return
	part=$(mktemp -d "$cache/part.XXXXXXXX") || return
	chmod 755 "$part"
	say "fetching PostgreSQL's source from Debian's archive"
	if make_source_lists "$part/apt"; then
		for release in $(releases "$part/apt"); do
			if (cd "$part" && apt_source "$part/apt" source --download-only \
				"postgresql-$version=$release") >"$part/apt/log" 2>&1; then
				rm -rf "$part/apt"
				mv -T "$part" "$1" && return
			fi
		done
	fi
	tail -n 5 "$part/apt/log" >&2 || true
	rm -rf "$part"
	return 1
}

# apt_source FOLDER COMMAND... - apt-get or apt-cache with lists of its own, so
# that the machine's configuration stays as it is.
apt_source()
{
	local folder=$1 program=apt-get

	shift
	[ "$1" != showsrc ] || program=apt-cache
	"$program" -qq -o APT::Sandbox::User= -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::Etc::sourcelist="$folder/sources.list" \
		-o Dir::State::lists="$folder/lists" \
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

# make_source_lists FOLDER - the archives that the machine has Debian's packages
# from, asked for sources.
make_source_lists()
{
	local keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed=

	[ ! -f "$keyring" ] || signed="[signed-by=$keyring]"
	mkdir -p "$1/lists/partial" || return
	# shellcheck disable=SC2016
	apt-get indextargets --format "deb-src $signed"' $(REPO_URI) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' 'Origin: Debian' | sort -u >"$1/sources.list"
	[ -s "$1/sources.list" ] || { echo "apt knows no archive of Debian" >&2; return 1; }
	apt_source "$1" update >"$1/log" 2>&1
}

# releases FOLDER - print the releases that the archives have, the server's
# first, then the newest first.
releases()
{
	server_release
	apt_source "$1" showsrc "postgresql-$version" | sed -n 's/^Version: //p' | sort -rV
}

# keep_only FOLDER PREFIX - remove what stands for other releases.
keep_only()
{
	local folder

	for folder in "$cache/$2"*; do
		[ "$folder" = "$1" ] || rm -rf "$folder"
	done
}
