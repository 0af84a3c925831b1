# Completions of godwit for fish. godwit itself answers what fits, within a second, and says nothing when it cannot.
function __godwit_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l answers (godwit __complete fish (count $before) $before "$current" 2>/dev/null)
    if contains -- ":files" $answers
        set -l flag (string match -r '^-[^=]*=' -- "$current")
        for path in (__fish_complete_path (string replace -r '^-[^=]*=' '' -- "$current"))
            printf '%s%s\n' "$flag" $path
        end
    else
        printf '%s\n' $answers
    end
end
complete -c godwit -f -a '(__godwit_complete)'
