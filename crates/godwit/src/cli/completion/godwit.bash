# Completions of godwit for bash. godwit itself answers what fits, within a second, and says nothing when it cannot.
_godwit() {
    COMPREPLY=()
    local line
    while IFS= read -r line; do
        if [[ $line == ":files" ]]; then
            COMPREPLY=()
            compopt -o default -o filenames 2>/dev/null
            return
        fi
        COMPREPLY+=("$line")
    done < <(godwit __complete bash "$COMP_POINT" "$COMP_LINE" "$COMP_WORDBREAKS" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=/] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _godwit godwit
