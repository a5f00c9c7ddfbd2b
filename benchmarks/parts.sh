# Parts of a long run, for scripts that begin with `. benchmarks/parts.sh FOLDER`: each part that ended leaves a mark and
# its output there and is left out the next time; one that fails is named at the end, and the others run all the same.
done=benchmarks/work/$1
mkdir -p "$done"
failed=()

part() {
    local name=$1
    shift
    if [ -e "$done/$name.done" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name: $*"
    local began=$SECONDS
    if "$@" 2>&1 | tee "$done/$name.log"; then
        echo "$((SECONDS - began)) seconds" | tee "$done/$name.done"
    else
        failed+=("$name")
    fi
}

conclude() {
    if [ ${#failed[@]} -gt 0 ]; then
        echo "failed: ${failed[*]}; see $done"
        exit 1
    fi
}
