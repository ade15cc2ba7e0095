%blocked+100000|{{cidr}} 1;
%listed|127.0.0.0/8 1;
