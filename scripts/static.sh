#!/bin/bash
#
# static.sh - read the sources with whatever finds faults in them without
# running them: cppcheck, clang-tidy, gcc -fanalyzer, pgindent, shellcheck, and
# our linter of the install script.  Run by scripts/test --static.
#
# shellcheck disable=SC2317 # check() calls the functions

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/postgres_source.sh
. "$repo/scripts/postgres_source.sh"

passed=0
failed=0
skipped=0
headers=			# folder of the server's headers

# check NAME COMMAND... - one check: it passes by exit code 0 and skips by 77.
# A finding in one does not keep the next from being made.
check()
{
	local name=$1 begin=$SECONDS rc=0

	shift
	say "$name"
	supervise "$scratch/check.out" "$@" || rc=$?
	case $rc in
		0) passed=$((passed + 1)) ;;
		77) skipped=$((skipped + 1)) ;;
		*) failed=$((failed + 1)); echo "FAILED: $name" ;;
	esac
	printf '   %d s\n' $((SECONDS - begin))
}

# --- C ----------------------------------------------------------------------

# cppcheck does not know what the compiler predefines, without which the
# server's headers stop it.  Left out: shadowFunction (the server's now() and
# lower() are SQL functions, not ours to call), variableScope (declared at the
# top of its function, as in the server), unknownEvaluationOrder (list_make2()
# with two arguments that do not depend on each other), and whatever is in the
# server's headers.
run_cppcheck()
{
	gcc -dM -E -x c - </dev/null >"$scratch/predefined.h"
	cppcheck -j "$(nproc)" --quiet --error-exitcode=1 --std=c99 --max-configs=1 \
		--enable=warning,performance,portability,style --inline-suppr \
		--suppress=shadowFunction --suppress=variableScope \
		--suppress=unknownEvaluationOrder --suppress=toomanyconfigs \
		--suppress="*:$headers/*" --include="$scratch/predefined.h" \
		--template='{file}:{line}: {severity}: {message} [{id}]' \
		-Isrc -I"$headers" src/*.c
}

# What it checks is in .clang-tidy.  Of each run it says how many warnings it
# left out.
run_clang_tidy()
{
	printf '%s\0' src/*.c |
		xargs -0 -P "$(nproc)" -I{} clang-tidy --quiet {} -- \
			-isystem "$headers" -D_GNU_SOURCE 2>&1 |
		sed -E '/^[0-9]+ warnings? generated\.$/d'
}

analyze_file()
{
	gcc -fanalyzer -O2 -Wall -Wextra -Werror -Wno-unused-parameter \
		-Wno-sign-compare -Wno-missing-field-initializers -D_GNU_SOURCE \
		-isystem "$headers" -c -o /dev/null "$1"
}

run_analyzer()
{
	local file rc=0

	for file in src/*.c; do
		analyze_file "$file" || rc=1
	done
	return "$rc"
}

# --- form -------------------------------------------------------------------

# pgindent is part of PostgreSQL's source, and so is the list of its types; our
# types are in src/typedefs.list.  pg_bsd_indent is a package of Debian's.
run_pgindent()
{
	local work=$scratch/indent rc=0

	mkdir "$work"
	find_source ||
		{ echo "skipped: Debian's archive has no source of PostgreSQL $version"; return 77; }
	tar -xf "$source_archive" -C "$work" --strip-components=4 --occurrence=1 --wildcards \
		'*/src/tools/pgindent/pgindent' '*/src/tools/pgindent/typedefs.list'
	cat src/typedefs.list >>"$work/typedefs.list"
	mkdir "$work/src"
	cp src/*.[ch] "$work/src"
	(cd "$work" && perl ./pgindent --typedefs=typedefs.list src/*.[ch]) || return
	diff -u -r --exclude='*.sql' --exclude=typedefs.list src "$work/src" || rc=1
	return "$rc"
}

# A type that the list lacks is indented as if it were a variable.
run_typedefs()
{
	own_typedefs | diff -u src/typedefs.list - --label src/typedefs.list --label sources
}

# The name of a type stands behind the brace that ends its definition, or it is
# the name of a function's type.
own_typedefs()
{
	cat src/*.[ch] | perl -0777 -ne '
		s{/\*.*?\*/}{}gs;
		print "$1\n" while /^typedef\s+(?:struct|enum|union)\s+\w+\s*\{.*?^\}\s*(\w+);/gsm;
		print "$1\n" while /^typedef\s+[^{};]*\(\*(\w+)\)\s*\(/gm;
		print "$1\n" while /^typedef\s+[\w\s*]*?(\w+);/gm' | LC_ALL=C sort -u
}

# --- scripts ----------------------------------------------------------------

run_shellcheck()
{
	local file files=()

	for file in scripts/* bench/* .ci/*; do
		case $(head -n 2 "$file" 2>/dev/null) in
			'#!/bin/bash'* | '# shellcheck shell=bash'*) files+=("$file") ;;
		esac
	done
	shellcheck --external-sources "${files[@]}"
}

run_sql_linter()
{
	local script

	scripts/lint_install_script.py --self-test || return
	as_server make -s -C "$src" "${make_options[@]}" -B \
		"$(as_server make -s -C "$src" "${make_options[@]}" print-DATA_built)" || return
	for script in "$src"/cusown_ops--*.sql src/upgrade/*.sql; do
		[ ! -f "$script" ] || scripts/lint_install_script.py "$script" || return
	done
}

# --- the run ----------------------------------------------------------------

finish()
{
	local line="$passed passed, $failed failed"

	[ "$skipped" -eq 0 ] || line+=", $skipped skipped"
	printf '\n%s\n' "$line"
	[ "$failed" -eq 0 ] || exit 1
	exit 0
}

need_packages "${build_packages[@]}" bzip2 cppcheck clang-tidy perl \
	pg-bsd-indent python3-pglast shellcheck
make_scratch
copy_tree "$repo" "$src"
cd "$src"
headers=$("$pg_config" --includedir-server)
check shellcheck run_shellcheck
check 'install script' run_sql_linter
check 'list of types' run_typedefs
check pgindent run_pgindent
check 'gcc -fanalyzer' run_analyzer
check clang-tidy run_clang_tidy
check cppcheck run_cppcheck
finish
