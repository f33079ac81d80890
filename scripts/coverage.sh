# shellcheck shell=bash disable=SC2034,SC2154 # shared with scripts/test
#
# coverage.sh - which lines of the C sources the tests reach.  Sourced by
# scripts/test --coverage [layer...].  A process that is killed takes its counts
# with it, so a line may have run and not be counted.

coverage='--coverage -O0'	# scripts/test builds with it
coverage_wanted=85			# per cent of all lines

# layer_coverage - one test: it passes if enough lines were reached.
layer_coverage()
{
	local begin=$SECONDS rc=0

	say coverage
	supervise "$scratch/coverage.out" as_server gcovr --root "$src" \
		--filter "$src/src/" --object-directory "$src/src" \
		--fail-under-line "$coverage_wanted" || rc=$?
	if [ "$rc" -eq 0 ]; then
		passed=1
	else
		fail "fewer than $coverage_wanted % of lines, or no counts"
	fi
	end_layer coverage $((SECONDS - begin))
}
