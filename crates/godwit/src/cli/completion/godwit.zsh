#compdef godwit
# Completions of godwit for zsh. godwit itself answers what fits, within a second, and says nothing when it cannot.
_godwit() {
    local -a answers open closed
    answers=("${(@f)$(godwit __complete zsh $((CURRENT - 1)) "${(@Q)words}" 2>/dev/null)}")
    answers=(${answers:#})
    if (( ${answers[(Ie):files]} )); then
        [[ $PREFIX == -*=* ]] && compset -P '*='
        _files
        return
    fi
    # What ends in a colon or an equals sign goes on: no blank comes after it.
    open=(${(M)answers:#*(\\:|=)})
    closed=(${answers:#*(\\:|=)})
    (( ${#closed} )) && _describe 'godwit' closed
    (( ${#open} )) && _describe 'godwit' open -S ''
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _godwit "$@"
else
    compdef _godwit godwit
fi
