module imageroot

go 1.26.8
