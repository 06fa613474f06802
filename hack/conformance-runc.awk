# Compares the output of bats with the list that is its first argument: FILE, runc's outcome, TEST, REASON.
# An outcome "ok" in the list is a difference: runc passes, we do not, and REASON says why.
BEGIN { FS = "\t"; wrong = 0 }
FNR == 1 && FILENAME != ARGV[1] { file = FILENAME; sub(/.*\//, "", file); planned = substr($0, 4); total += planned }
FILENAME == ARGV[1] {
    if (/^#/) next
    runc[$1, $3] = $2
    why[$1, $3] = $4
    if ($2 == "ok") difference[$1, $3] = 1
    next
}
match($0, /^(ok|not ok) [0-9]+ /) {
    found = /^not/ ? "not ok" : "ok"
    test = substr($0, RLENGTH + 1)
    if (found == "ok" && match(test, / # skip/)) { found = "skip"; test = substr(test, 1, RSTART - 1) }
    count[found]++
    expected = (file, test) in runc ? runc[file, test] : "ok"
    if (judged == "runc") fine = found == expected
    else if ((file, test) in difference) fine = found != "ok"
    # what the machine keeps from runc may be kept from us
    else fine = found == "ok" || found == expected
    if (!fine) wrong++
    if (!fine || found != expected)
        printf "%s\t%s\t%s: listed %s, found %s\t%s\n", fine ? "differs" : "WRONG", file, test, expected, found, \
            (file, test) in why ? why[file, test] : "not in the list"
}
END {
    if (count["ok"] + count["skip"] + count["not ok"] != total) {
        printf "WRONG\t%d tests planned, %d ran\n", total, count["ok"] + count["skip"] + count["not ok"]
        wrong++
    }
    printf "%d passed, %d failed, %d skipped\n", count["ok"], count["not ok"], count["skip"]
    exit wrong > 0
}
